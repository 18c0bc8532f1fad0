"""`krea2 convert`: a checkpoint written in another layout, tensor by tensor."""
