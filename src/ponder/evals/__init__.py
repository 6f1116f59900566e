"""What answers are worth: intervals, estimators over pools of samples, and what more compute buys."""
