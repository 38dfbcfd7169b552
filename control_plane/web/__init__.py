"""What every request to the control plane goes through, whatever it asks for."""
