"""SkyNet's Celery settings, for readers of the repository: they are `skynet.chords.config`.

Workers and clients use that module only, so that an application's own `celeryconfig` and SkyNet's
never stand in for each other.
"""

from skynet.chords.config import *  # noqa: F403
