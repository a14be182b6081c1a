"""How a step is started."""
