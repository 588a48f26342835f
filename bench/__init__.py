"""What the project's figures are measured with."""
