package derp

import (
	"io"
	"log"
	"net/http"
	"net/url"
)

var quiet = log.New(io.Discard, "", 0)

func noProxy(*http.Request) (*url.URL, error) { return nil, nil }

func serveForBenchmark() {}
