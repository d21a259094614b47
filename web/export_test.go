package web

// Routes are those of the dashboard, with the role that each needs.
func (d *Dashboard) Routes() []Route { return d.routes }

// Open is the role of a route that anybody may ask for.
const Open = open

// SessionCheckEvery is how often a stream checks its session.
const SessionCheckEvery = sessionCheckEvery

// Stream serves one more stream, for a test.
var Stream = (*Dashboard).stream
