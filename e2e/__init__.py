"""What needs a real cluster or a real engine: the stage and the end-to-end tests."""
