package app

import (
	"context"
	"net/http"
	"net/http/pprof"
)

// servePprof serves the profiles of this process. They tell what is in its memory, so
// that Config lets nobody but this machine reach them.
func (w *Worker) servePprof(ctx context.Context) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	if err := Serve(ctx, w.pprof, mux); err != nil {
		w.log.Error("pprof.failed", "error", err)
	}
}
