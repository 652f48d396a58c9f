"""What only the weights can tell: streamed once, run for real in little memory, looked at as a picture."""
