"""kopf handlers: each observes, plans and acts."""
