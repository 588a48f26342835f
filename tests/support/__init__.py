"""What the tests share: databases, servers, proxies and requests. It holds no tests."""
