"""What files say of where their pictures come from."""
