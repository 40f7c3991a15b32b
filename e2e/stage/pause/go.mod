module medley.dev/stage/pause

go 1.26.0
