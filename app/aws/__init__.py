"""The only place that speaks to AWS."""
