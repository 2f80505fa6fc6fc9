"""Run the stages that DVC finds out of date, several at a time."""
