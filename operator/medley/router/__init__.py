"""The front door: holds client streams and carries them over engine losses."""
