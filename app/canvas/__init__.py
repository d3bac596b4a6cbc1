"""The managed run: Amazon SageMaker's AutoML for time series, driven through its life."""
