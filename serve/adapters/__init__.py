"""Routes in the forms that clients of other services speak."""

from fastapi import APIRouter

from serve.adapters import cvat, huggingface, kserve, label_studio

ROUTERS: tuple[APIRouter, ...] = (huggingface.router, kserve.router, label_studio.router, cvat.router)
"""What the service includes beside its own routes."""
