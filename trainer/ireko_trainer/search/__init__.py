"""Which subnets are worth training and which of them ships to which device: decisions on plain numbers."""
