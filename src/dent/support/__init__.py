"""What any module may need: extras, factories, devices, signals, addresses; it knows no model."""
