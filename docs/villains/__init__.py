"""Villains: a second resource, written as any FastAPI service has it."""
