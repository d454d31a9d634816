"""The only home of Ray and MLflow."""
