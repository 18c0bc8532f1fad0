"""What ranks say to each other, and the layers that are split over them."""
