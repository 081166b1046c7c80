"""Everything between a decoded image and a result that training and serving share."""
