"""Speed measured the same way each time: ours against the bare client and against peers."""
