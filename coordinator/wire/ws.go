package wire

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/gorilla/websocket"
)

// maxFrame bounds one WebSocket message. TLS writes a record (RFC 8446 section 5.1: 2^14 bytes and some) or a flight
// of its handshake at a time.
const maxFrame = 64 << 10

// stream is a WebSocket as a net.Conn: a stream of bytes in binary messages, whose borders mean nothing.
type stream struct {
	ws *websocket.Conn
	r  io.Reader // of the message being read; nil between two
}

func newStream(ws *websocket.Conn) *stream {
	ws.SetReadLimit(maxFrame)
	return &stream{ws: ws}
}

func (s *stream) Read(p []byte) (int, error) {
	for {
		if s.r == nil {
			kind, r, err := s.ws.NextReader()
			if err != nil {
				var ce *websocket.CloseError
				if errors.As(err, &ce) {
					err = io.EOF
				}
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("wire: a text message on the channel")
			}
			s.r = r
		}
		n, err := s.r.Read(p)
		if err == io.EOF {
			s.r, err = nil, nil
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

func (s *stream) Write(p []byte) (int, error) {
	if err := s.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *stream) Close() error                       { return s.ws.Close() }
func (s *stream) LocalAddr() net.Addr                { return s.ws.LocalAddr() }
func (s *stream) RemoteAddr() net.Addr               { return s.ws.RemoteAddr() }
func (s *stream) SetReadDeadline(t time.Time) error  { return s.ws.SetReadDeadline(t) }
func (s *stream) SetWriteDeadline(t time.Time) error { return s.ws.SetWriteDeadline(t) }
func (s *stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}
