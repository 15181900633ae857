"""Where features lie between the steps, and in how many bytes."""
