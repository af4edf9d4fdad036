pytest_plugins = ["tests.llm.fixtures"]
