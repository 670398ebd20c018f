"""What diffusers' training script needs of torchvision, for machines that have no torchvision."""
