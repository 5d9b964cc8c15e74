package coordinator

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/hedge-mesh/hedge/acl"
)

// maxPolicy bounds the file, in bytes, before it is parsed.
const maxPolicy = 1 << 20

// settle is how long the file must be left alone before it is read: an editor's save is several events.
const settle = 50 * time.Millisecond

// policyFile is what became of the file. The policy in force is in the state, so that a revision has exactly one.
type policyFile struct {
	change sync.Mutex // held while the policy is being changed

	mu       sync.Mutex
	rejected *ACLCheck // nil if the file is what is in force
}

func (p *policyFile) reject(c *ACLCheck) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rejected = c
}

func (p *policyFile) wrong() *ACLCheck {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rejected
}

func hashOf(src []byte) string {
	sum := sha256.Sum256(src)
	return hex.EncodeToString(sum[:])
}

// prove parses a policy, runs its own tests, and compiles it against the mesh as it is.
func (s *Server) prove(src []byte) (*acl.Policy, *ACLCheck) {
	check := &ACLCheck{Hash: hashOf(src)}
	fail := func(err error) (*acl.Policy, *ACLCheck) {
		if check.Errors = acl.Of(err); check.Errors == nil {
			check.Errors = acl.Errors{{Pos: acl.Pos{File: filepath.Base(s.cfg.PolicyFile), Line: 1, Col: 1}, Class: acl.ClassSyntax, Msg: err.Error()}}
		}
		check.Rendered = check.Errors.Render()
		return nil, check
	}
	if len(src) > maxPolicy {
		return fail(fmt.Errorf("the file has %d bytes, more than %d", len(src), maxPolicy))
	}
	p, err := acl.Parse(filepath.Base(s.cfg.PolicyFile), src, acl.Options{})
	if err != nil {
		return fail(err)
	}
	inv, _ := s.state.Load().under(p).inventory(s.now())
	if errs := p.Test(inv); len(errs) > 0 {
		return fail(errs)
	}
	if _, err := acl.Compile(p, inv); err != nil {
		return fail(err)
	}
	check.OK = true
	return p, check
}

// restore takes up the policy that was last in force.
func (s *Server) restore(st *state) {
	rec := st.policy
	if rec == nil {
		return
	}
	var err error
	rec.hash = hashOf(rec.Source)
	rec.parsed, err = acl.Parse(filepath.Base(s.cfg.PolicyFile), rec.Source, acl.Options{})
	if err != nil { // written by a release that read it otherwise
		s.cfg.Log.Error().Err(err).Msg("the policy last in force does not read any more; nothing is allowed until the file stands")
		st.policy = nil
	}
}

// Reload reads the policy file again. If the file does not stand, the error is or wraps an [acl.Errors] and the
// policy in force stays.
func (s *Server) Reload() error {
	s.policy.change.Lock()
	defer s.policy.change.Unlock()
	src, err := readPolicy(s.cfg.PolicyFile)
	if err != nil {
		errs := acl.Errors{{Pos: acl.Pos{File: filepath.Base(s.cfg.PolicyFile), Line: 1, Col: 1}, Class: acl.ClassSyntax, Msg: err.Error()}}
		s.policy.reject(&ACLCheck{Errors: errs, Rendered: errs.Render()})
		return err
	}
	return s.enforce(src, func(check *ACLCheck) error {
		if !check.OK {
			s.policy.reject(check)
			return check.Errors
		}
		return nil
	})
}

// readPolicy never takes a missing, empty or huge file for a policy.
func readPolicy(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("coordinator: cannot read the policy: %w", err)
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, maxPolicy+1))
	if err != nil {
		return nil, fmt.Errorf("coordinator: cannot read the policy: %w", err)
	}
	if len(src) == 0 {
		return nil, fmt.Errorf("coordinator: the policy file %s is empty", path)
	}
	return src, nil
}

// enforce proves a policy, and puts it in force if accept, which sees what is wrong with it, returns no error. The
// caller holds change.
func (s *Server) enforce(src []byte, accept func(*ACLCheck) error) error {
	p, check := s.prove(src)
	if err := accept(check); err != nil {
		return err
	}
	rec := &policyRecord{Source: src, Since: s.now(), hash: check.Hash, parsed: p}
	err := s.commit(func(st *state) (*change, error) {
		if st.policy != nil && st.policy.hash == rec.hash {
			return nil, nil
		}
		return &change{policy: rec}, nil
	})
	if err != nil {
		return err
	}
	s.policy.reject(nil)
	if s.state.Load().policy == rec {
		s.cfg.Log.Info().Str("hash", rec.hash).Msg("a new policy is in force")
	}
	return nil
}

// setPolicy proves a policy, writes it to the file, and puts it in force.
func (s *Server) setPolicy(src []byte) error {
	s.policy.change.Lock()
	defer s.policy.change.Unlock()
	return s.enforce(src, func(check *ACLCheck) error {
		if !check.OK {
			return &AdminError{Status: 422, Class: "policy", Msg: "the policy does not stand; the one in force stays", Check: check}
		}
		if err := writeFile(s.cfg.PolicyFile, src); err != nil {
			return fmt.Errorf("coordinator: cannot write the policy: %w", err)
		}
		return nil
	})
}

// writeFile replaces a file by one that is whole, whatever happens meanwhile.
func writeFile(path string, b []byte) error {
	mode := os.FileMode(0o600)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".acl-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// watchPolicy reads the file again after it has changed and settled. Any event of the directory counts: the file may
// be a link whose target's directory is swapped.
func (s *Server) watchPolicy(w *fsnotify.Watcher) {
	defer w.Close()
	settled := time.NewTimer(time.Hour)
	settled.Stop()
	defer settled.Stop()
	last := ""
	for {
		select {
		case <-s.ctx.Done():
			return
		case _, ok := <-w.Events:
			if !ok {
				return
			}
			settled.Reset(settle)
		case err, ok := <-w.Errors:
			if !ok {
				return
			}
			s.cfg.Log.Warn().Err(err).Msg("watching the policy file")
			settled.Reset(settle) // events may have been lost
		case <-settled.C:
			err := s.Reload()
			if err != nil && err.Error() != last {
				s.cfg.Log.Error().Err(err).Str("file", s.cfg.PolicyFile).Msg("the policy file does not stand; the policy in force stays")
			}
			if last = ""; err != nil {
				last = err.Error()
			}
		}
	}
}
