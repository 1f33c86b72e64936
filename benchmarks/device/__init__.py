"""What a borrowed accelerator is asked in a few minutes: equality, speed against its own limits, real fits, traces."""
