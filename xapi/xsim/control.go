package xsim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// control serves the control API; package doc lists it. It meets no faults.
func (s *Server) control(r *http.Request, body []byte) answer {
	s.keepTime()
	a := s.controlAnswer(r, body)
	if err := s.journalError(); err != nil {
		a = controlError(http.StatusInternalServerError, err)
	}
	a.header = http.Header{"Content-Type": {a.contentType}, "Content-Security-Policy": {pagePolicy}, "X-Content-Type-Options": {"nosniff"}}
	return a
}

func (s *Server) controlAnswer(r *http.Request, body []byte) answer {
	user := r.URL.Query().Get("user")
	if id, ok := strings.CutPrefix(r.URL.Path, "/_sim/media/"); ok && r.Method == http.MethodGet {
		return s.picture(id)
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /_sim/":
		return s.callLogPage()
	case "GET /_sim/page.css":
		return answer{status: http.StatusOK, contentType: "text/css; charset=utf-8", body: pageCSS}
	case "GET /_sim/icon.svg":
		return answer{status: http.StatusOK, contentType: "image/svg+xml", body: []byte(pageIcon)}
	case "GET /_sim/healthz":
		return jsonAnswer(http.StatusOK, map[string]string{"status": "ok"})
	case "POST /_sim/accounts":
		return s.controlAddAccount(body)
	case "GET /_sim/accounts":
		return jsonAnswer(http.StatusOK, s.Accounts())
	case "PUT /_sim/accounts":
		return s.controlChangeAccount(user, body)
	case "GET /_sim/posts":
		return s.forUser(user, func() any { return s.Posts(user) })
	case "GET /_sim/media":
		return s.forUser(user, func() any { return s.Media(user) })
	case "DELETE /_sim/media":
		if !s.ExpireMedia(user) {
			return noSuchUser(user)
		}
		return jsonAnswer(http.StatusOK, map[string]bool{"expired": true})
	case "GET /_sim/calls":
		return jsonAnswer(http.StatusOK, s.Calls())
	case "GET /_sim/exchanges":
		return s.forUser(user, func() any { return s.Exchanges(user) })
	case "GET /_sim/counts":
		return jsonAnswer(http.StatusOK, s.Counts())
	case "GET /_sim/violations":
		return jsonAnswer(http.StatusOK, s.Violations())
	case "GET /_sim/leniencies":
		return jsonAnswer(http.StatusOK, s.Leniencies())
	case "GET /_sim/faults":
		return jsonAnswer(http.StatusOK, append([]Fault{}, s.Faults()...))
	case "PUT /_sim/faults":
		return replace(body, s.SetFaults)
	case "GET /_sim/limits":
		return jsonAnswer(http.StatusOK, s.LimitsInForce())
	case "PUT /_sim/limits":
		return replace(body, s.SetLimits)
	case "GET /_sim/windows":
		return jsonAnswer(http.StatusOK, s.Windows())
	case "GET /_sim/tokens":
		token, ok := s.CurrentToken(user)
		if !ok {
			return noSuchUser(user)
		}
		return jsonAnswer(http.StatusOK, token)
	case "DELETE /_sim/tokens":
		if !s.RevokeConsent(user) {
			return noSuchUser(user)
		}
		return jsonAnswer(http.StatusOK, map[string]bool{"revoked": true})
	case "GET /_sim/consent":
		return jsonAnswer(http.StatusOK, s.ConsentInForce())
	case "PUT /_sim/consent":
		return s.controlConsent(body)
	case "GET /_sim/scenario":
		return jsonAnswer(http.StatusOK, s.Scenario())
	case "PUT /_sim/scenario":
		return s.controlScenario(body)
	case "POST /_sim/reset":
		s.Reset()
		return jsonAnswer(http.StatusOK, map[string]bool{"reset": true})
	}
	return controlError(http.StatusNotFound, fmt.Errorf("no such control: %s %s", r.Method, r.URL.Path))
}

func (s *Server) controlAddAccount(body []byte) answer {
	var n NewAccount
	if err := decodeStrict(body, &n); err != nil {
		return controlError(http.StatusBadRequest, err)
	}
	grant, err := s.AddAccount(n)
	if err != nil {
		return controlError(http.StatusBadRequest, err)
	}
	return jsonAnswer(http.StatusCreated, grant)
}

func (s *Server) controlChangeAccount(user string, body []byte) answer {
	if _, ok := s.CurrentToken(user); !ok {
		return noSuchUser(user)
	}
	var change AccountChange
	if err := decodeStrict(body, &change); err != nil {
		return controlError(http.StatusBadRequest, err)
	}
	account, err := s.ChangeAccount(user, change)
	if err != nil {
		return controlError(http.StatusBadRequest, err)
	}
	return jsonAnswer(http.StatusOK, account)
}

func (s *Server) controlConsent(body []byte) answer {
	var consent Consent
	if err := decodeStrict(body, &consent); err != nil {
		return controlError(http.StatusBadRequest, err)
	}
	if err := s.SetConsent(consent); err != nil {
		return controlError(http.StatusBadRequest, err)
	}
	return jsonAnswer(http.StatusOK, consent)
}

func (s *Server) controlScenario(body []byte) answer {
	scenario, err := ReadScenario(body)
	if err == nil {
		err = s.Play(scenario)
	}
	if err != nil {
		return controlError(http.StatusBadRequest, err)
	}
	return jsonAnswer(http.StatusOK, scenario)
}

// replace reads a list and sets it; the answer repeats it.
func replace[T any](body []byte, set func([]T) error) answer {
	list := []T{}
	if err := decodeStrict(body, &list); err != nil {
		return controlError(http.StatusBadRequest, err)
	}
	if err := set(list); err != nil {
		return controlError(http.StatusBadRequest, err)
	}
	return jsonAnswer(http.StatusOK, append([]T{}, list...))
}

// forUser lists for a user who must exist, or for all. A checker that misspells
// a user must not read an empty list as "nothing was posted".
func (s *Server) forUser(user string, list func() any) answer {
	if user != "" {
		if _, ok := s.CurrentToken(user); !ok {
			return noSuchUser(user)
		}
	}
	return jsonAnswer(http.StatusOK, list())
}

func noSuchUser(user string) answer {
	return controlError(http.StatusNotFound, fmt.Errorf("no such user: %q", user))
}

func controlError(status int, err error) answer {
	return jsonAnswer(status, map[string]string{"error": err.Error()})
}

func decodeStrict(body []byte, into any) error {
	if err := strictly(body, into); err != nil {
		return fmt.Errorf("decode body: %w", err)
	}
	return nil
}

// strictly decodes one JSON value without a member that nobody knows.
func strictly(data []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}
