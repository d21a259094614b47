package publishers

import (
	"fmt"

	"github.com/nats-io/nats.go"
)

// Listen calls heard at each message on the subjects until stop is called. It is a hint:
// what is published while the connection is lost is not heard of.
func Listen(nc *nats.Conn, heard func(), subjects ...string) (stop func(), err error) {
	var subscriptions []*nats.Subscription
	stop = func() {
		for _, s := range subscriptions {
			_ = s.Unsubscribe() // fails only where it is gone with its connection
		}
	}
	for _, subject := range subjects {
		s, err := nc.Subscribe(subject, func(*nats.Msg) { heard() })
		if err != nil {
			stop()
			return nil, fmt.Errorf("subscribe to %s: %w", subject, explain(err))
		}
		subscriptions = append(subscriptions, s)
	}
	return stop, nil
}
