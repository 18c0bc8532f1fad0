"""What files say of where their pictures come from: that a model drew them, and which."""
