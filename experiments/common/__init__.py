"""What the experiments share: how one is run and recorded, its data, its trainings, its statistics and its figure."""
