"""Frechet Semantic Distance: semantic vectors of images, and how far apart two sets of them are."""
