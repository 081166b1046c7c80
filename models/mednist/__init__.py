"""MedNIST: six kinds of radiograph, CT and MR slice."""
