"""What each request passes before its route. Pure ASGI: Starlette's BaseHTTPMiddleware would hide
from routes that a client has left."""
