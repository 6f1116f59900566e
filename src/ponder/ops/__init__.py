"""What running it in production needs."""
