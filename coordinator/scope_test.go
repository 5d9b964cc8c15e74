package coordinator

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	"github.com/hedge-mesh/hedge/coordinator/wire"
)

// R-delete-scope: what is removed, revoked or ended for one leaves everybody else's as it is, to the last bit of the store.
func TestRDeleteScope(t *testing.T) {
	r := newRig(t, openPolicy, nil)
	ctx := t.Context()
	aliceKey, bobKey := r.key(CreateKeyRequest{User: alice, Reusable: true}), r.key(CreateKeyRequest{User: bob, Reusable: true})
	a, a2, b := r.node("a", aliceKey).join(), r.node("a2", aliceKey).join(), r.node("b", bobKey).join()
	r.settled()
	records := func() map[string][]byte {
		snap, err := r.store.Load(ctx)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string][]byte{}
		for _, rec := range snap.Records {
			out[rec.Kind+" "+rec.ID] = rec.Value
		}
		return out
	}
	keys, err := r.admin.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	aliceID := keys[slices.IndexFunc(keys, func(k KeyInfo) bool { return k.User == alice })].ID
	for _, c := range []struct {
		what    string
		do      func() error
		changes int // records
	}{
		{"revoking alice's key", func() error { _, err := r.admin.RevokeKey(ctx, aliceID); return err }, 1},
		{"expiring a node", func() error { _, err := r.admin.Expire(ctx, "a2"); return err }, 1},
		{"removing a node", func() error { _, err := r.admin.Remove(ctx, "a"); return err }, 7}, // its own, those it is found by (machine, key, name, two addresses), and a tombstone
	} {
		before := records()
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		after := records()
		var changed []string
		for k := range maps.Keys(before) {
			if !bytes.Equal(before[k], after[k]) {
				changed = append(changed, k)
			}
		}
		for k := range maps.Keys(after) {
			if _, was := before[k]; !was {
				changed = append(changed, k)
			}
		}
		if len(changed) != c.changes {
			t.Errorf("%s changes %q", c.what, changed)
		}
	}
	_, _ = a, a2
	b.close()
	b.connect()
	b.until("its map", func() bool { return b.m != nil && b.m.Self.Name == "b" })
	r.node("b2", bobKey).join() // bob's key stands
	r.node("a3", aliceKey).connect().wantRefused(wire.RefusedKeyEnded, "revoked")
}
