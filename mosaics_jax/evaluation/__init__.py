"""What is measured on trained networks, and drawn."""
