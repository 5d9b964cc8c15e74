package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/store"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/hatch"
)

// adminHost is the only Host that the admin API answers to: a page that a browser was lured to has another.
const adminHost = "hedge"

const (
	maxAdminBody = 64 << 10
	defaultTTL   = time.Hour
	maxTTL       = 366 * 24 * time.Hour
)

// access says who may use a route.
type access int

// adminOnly is the user this process runs as, and root. The zero access is nobody.
const adminOnly access = 1

// route is one entry of the admin API. Every one says who may use it.
type route struct {
	pattern string
	access  access
	body    int64 // the most bytes taken
	serve   func(*Server, *http.Request) (any, error)
}

var adminRoutes = []route{
	{"GET /status", adminOnly, 0, (*Server).adminStatus},
	{"GET /nodes", adminOnly, 0, (*Server).adminNodes},
	{"GET /nodes/{name}", adminOnly, 0, (*Server).adminNode},
	{"DELETE /nodes/{name}", adminOnly, 0, (*Server).adminRemove},
	{"PUT /nodes/{name}/tags", adminOnly, maxAdminBody, (*Server).adminTag},
	{"PUT /nodes/{name}/routes", adminOnly, maxAdminBody, (*Server).adminRoutes},
	{"POST /nodes/{name}/expire", adminOnly, 0, (*Server).adminExpire},
	{"GET /users", adminOnly, 0, (*Server).adminUsers},
	{"POST /users", adminOnly, maxAdminBody, (*Server).adminCreateUser},
	{"GET /join-keys", adminOnly, 0, (*Server).adminKeys},
	{"POST /join-keys", adminOnly, maxAdminBody, (*Server).adminCreateKey},
	{"DELETE /join-keys/{id}", adminOnly, 0, (*Server).adminRevokeKey},
	{"GET /acl", adminOnly, 0, (*Server).adminACL},
	{"PUT /acl", adminOnly, maxPolicy, (*Server).adminSetACL},
	{"POST /acl/check", adminOnly, maxPolicy, (*Server).adminCheckACL},
	{"GET /acl/inventory", adminOnly, 0, (*Server).adminInventory},
}

type uidKey struct{}

// Admin serves the admin API. It answers only connections that ServeAdmin has seen the credentials of.
func (s *Server) Admin() http.Handler {
	mux := http.NewServeMux()
	for _, r := range adminRoutes {
		mux.HandleFunc(r.pattern, func(w http.ResponseWriter, req *http.Request) { s.serveAdmin(r, w, req) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeAdmin(w, nil, &AdminError{Status: 404, Class: "not-found", Msg: "no such route: is the command of another release than the coordinator?"})
	})
	return mux
}

func (s *Server) serveAdmin(r route, w http.ResponseWriter, req *http.Request) {
	uid, known := req.Context().Value(uidKey{}).(int)
	allowed := known && r.access == adminOnly && (uid == 0 || uid == os.Geteuid())
	for _, h := range []string{"Origin", "Referer", "Sec-Fetch-Site"} {
		if req.Header.Get(h) != "" {
			allowed = false
		}
	}
	if !allowed || req.Host != adminHost {
		writeAdmin(w, nil, &AdminError{Status: 403, Class: "denied", Msg: "only root and the user that the coordinator runs as may administer it"})
		return
	}
	req.Body = http.MaxBytesReader(w, req.Body, r.body)
	out, err := r.serve(s, req)
	if req.Method != http.MethodGet {
		e := s.cfg.Log.Info()
		if err != nil {
			e = s.cfg.Log.Warn().Err(err)
		}
		e.Int("uid", uid).Str("do", req.Method+" "+req.URL.Path).Msg("admin")
	}
	writeAdmin(w, out, err)
}

func writeAdmin(w http.ResponseWriter, out any, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err != nil {
		var a *AdminError
		if !errors.As(err, &a) {
			a = &AdminError{Status: 500, Class: "internal", Msg: err.Error()}
		}
		w.WriteHeader(a.Status)
		out = a
	}
	json.NewEncoder(w).Encode(out)
}

// ServeAdmin serves the admin API on l to the user this process runs as, and to root, until l or the Server is closed.
func (s *Server) ServeAdmin(l net.Listener) error {
	if !s.enter() {
		return l.Close()
	}
	defer s.exit()
	h := &http.Server{
		Handler: s.Admin(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if uid, err := hatch.User(c); err == nil {
				ctx = context.WithValue(ctx, uidKey{}, uid)
			}
			return ctx
		},
	}
	stop := context.AfterFunc(s.ctx, func() { l.Close() })
	defer stop()
	err := h.Serve(l)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if h.Shutdown(ctx) != nil { // waits for the answers under way
		h.Close()
	}
	if s.ctx.Err() != nil {
		return nil
	}
	return err
}

// ListenAdmin makes the admin API's socket, which is its user's only, and takes the place of one that nobody listens on.
func ListenAdmin(path string) (net.Listener, error) {
	l, err := hatch.Listen(path)
	switch {
	case errors.Is(err, hatch.ErrTaken):
		return nil, fmt.Errorf("coordinator: another coordinator listens on %s", path)
	case err != nil:
		return nil, fmt.Errorf("coordinator: admin socket: %w", err)
	}
	return l, nil
}

func invalid(format string, args ...any) error {
	return &AdminError{Status: 400, Class: "invalid", Msg: fmt.Sprintf(format, args...)}
}

// body reads a JSON body strictly.
func body(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return invalid("the request does not read: %v", err)
	}
	return nil
}

func (s *Server) nodeInfo(n *node) NodeInfo {
	now := s.now()
	i := NodeInfo{ID: n.ID, Name: n.Name, User: n.User, Tags: n.Tags, Addrs: n.Addrs, Key: n.Key, Machine: n.Machine, Created: n.Created,
		Expires: n.Expires, Expired: n.expired(now), Ephemeral: n.Ephemeral, OS: n.OS, Software: n.Software, Routes: s.routeInfos(n)}
	if p, ok := s.presence.of(n.ID); ok {
		i.Online, i.LastSeen, i.Endpoints, i.Relay = p.Online, p.LastSeen, p.Endpoints, p.Relay
		if i.Online {
			i.LastSeen = now
		}
	}
	if w := s.world.Load(); w.program != nil {
		i.Peers = len(w.program.Peers(n.ID))
	}
	if x := s.sessions.get(n.ID); x != nil {
		i.Enforced = x.enforces(s.told.Load())
	}
	return i
}

// lookup finds a node by name, number or address.
func (st *state) lookup(name string) (*node, error) {
	n := st.byName.get(strings.ToLower(name))
	if id, err := strconv.ParseUint(name, 10, 64); err == nil && n == nil {
		n = st.nodes.get(acl.NodeID(id))
	}
	if a, err := netip.ParseAddr(name); err == nil && n == nil {
		n = st.byAddr.get(a)
	}
	if n == nil {
		return nil, &AdminError{Status: 404, Class: "not-found", Msg: fmt.Sprintf("there is no node %q; hedge admin node list shows all", printable(name))}
	}
	return n, nil
}

func (s *Server) adminNodes(*http.Request) (any, error) {
	st := s.state.Load()
	out := make([]NodeInfo, 0, st.nodes.len())
	for _, n := range st.nodes.all() {
		out = append(out, s.nodeInfo(n))
	}
	slices.SortFunc(out, func(a, b NodeInfo) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (s *Server) adminNode(r *http.Request) (any, error) {
	n, err := s.state.Load().lookup(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return s.nodeInfo(n), nil
}

func (s *Server) adminRemove(r *http.Request) (any, error) {
	n, err := s.state.Load().lookup(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	info := s.nodeInfo(n)
	return info, s.remove(n, true)
}

// edit changes one node.
func (s *Server) edit(r *http.Request, f func(st *state, n *node) error) (*node, error) {
	var out *node
	err := s.commit(func(st *state) (*change, error) {
		n, err := st.lookup(r.PathValue("name"))
		if err != nil {
			return nil, err
		}
		edited := *n
		if err := f(st, &edited); err != nil {
			return nil, err
		}
		out = &edited
		return &change{nodes: map[acl.NodeID]*node{n.ID: out}}, nil
	})
	return out, err
}

// tags checks tags that an admin gives: what the policy does not declare would mean nothing, by a typo perhaps.
func (st *state) tags(tags []string) ([]string, error) {
	tags = slices.Clone(tags)
	slices.Sort(tags)
	tags = slices.Compact(tags)
	if len(tags) > 32 {
		return nil, invalid("%d tags are more than a node may have, 32", len(tags))
	}
	for _, t := range tags {
		name, ok := strings.CutPrefix(t, "tag:")
		if !ok || name == "" || label(name) != name {
			return nil, invalid("%q is not a tag: write tag:name, with letters, digits and hyphens", printable(t))
		}
		if st.policy == nil || !st.policy.parsed.HasTag(t) {
			return nil, invalid("the policy in force does not declare %s: add it to tagOwners first", t)
		}
	}
	return tags, nil
}

func (s *Server) adminTag(r *http.Request) (any, error) {
	var req struct {
		Tags []string `json:"tags"`
	}
	if err := body(r, &req); err != nil {
		return nil, err
	}
	n, err := s.edit(r, func(st *state, n *node) (err error) {
		if n.Tags, err = st.tags(req.Tags); err == nil && len(n.Tags) == 0 {
			if n.User == "" {
				err = invalid("a node without tags needs a user, and this one never had any: have its user join it anew")
			}
			return err
		}
		if err == nil { // the user stays known, for sources such as "group:eng & tag:corp"
			policyNode := n.acl()
			err = s.keepsNevers(st, &policyNode, nil)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.nodeInfo(n), nil
}

func (s *Server) adminExpire(r *http.Request) (any, error) {
	n, err := s.edit(r, func(_ *state, n *node) error {
		if now := s.now(); !n.expired(now) {
			n.Expires = now.Truncate(time.Second)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.cutOff(n, refuse(wire.RefusedExpired, "an admin has let this node's key expire: to keep its name and address, "+newJoin+" and join with it"))
	return s.nodeInfo(n), nil
}

func (st *state) userInfo(u *user) UserInfo {
	i := UserInfo{Login: u.Login, Roles: u.Roles, Created: u.Created}
	for _, n := range st.nodes.all() {
		if n.User == u.Login && len(n.Tags) == 0 {
			i.Nodes++
		}
	}
	return i
}

func (s *Server) adminUsers(*http.Request) (any, error) {
	st := s.state.Load()
	out := make([]UserInfo, 0, len(st.users))
	for _, u := range st.users {
		out = append(out, st.userInfo(u))
	}
	slices.SortFunc(out, func(a, b UserInfo) int { return strings.Compare(a.Login, b.Login) })
	return out, nil
}

// validLogin is what the policy language takes for a user: something@something, in one line of plain characters.
func validLogin(s string) bool {
	local, domain, ok := strings.Cut(s, "@")
	return ok && local != "" && len(s) <= 254 && !strings.ContainsAny(domain, "@") && s == strings.TrimSpace(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`"',:*/\`, r) || r == 0xfffd }) &&
		printable(s[:min(len(s), 64)]) == s[:min(len(s), 64)]
}

func (s *Server) adminCreateUser(r *http.Request) (any, error) {
	var req CreateUserRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if !validLogin(req.Login) {
		return nil, invalid("%q is not a login: write it as name@domain", printable(req.Login))
	}
	for _, role := range req.Roles {
		if role != label(role) {
			return nil, invalid("%q is not a role", printable(role))
		}
	}
	u := &user{Login: req.Login, Roles: req.Roles, Created: s.now()}
	err := s.commit(func(st *state) (*change, error) {
		if st.users[u.Login] != nil {
			return nil, &AdminError{Status: 409, Class: "exists", Msg: fmt.Sprintf("the user %s is there already", u.Login)}
		}
		if err := s.keepsNevers(st, nil, &acl.User{Login: u.Login, Roles: u.Roles}); err != nil {
			return nil, err
		}
		return &change{users: map[string]*user{u.Login: u}}, nil
	})
	if err != nil {
		return nil, err
	}
	return s.state.Load().userInfo(u), nil
}

func (k *joinKey) info(now time.Time) KeyInfo {
	i := KeyInfo{ID: k.ID, User: k.User, Tags: k.Tags, Reusable: k.Reusable, Ephemeral: k.Ephemeral, Created: k.Created,
		Expires: k.Expires, Uses: k.Uses, Revoked: k.Revoked, State: "valid"}
	if no := k.stands(now); no != nil {
		switch {
		case k.Revoked:
			i.State = "revoked"
		case no.Code == wire.RefusedKeyUsed:
			i.State = "used"
		default:
			i.State = "expired"
		}
	}
	return i
}

func (s *Server) adminKeys(*http.Request) (any, error) {
	st := s.state.Load()
	out := make([]KeyInfo, 0, len(st.keys))
	for _, k := range st.keys {
		out = append(out, k.info(s.now()))
	}
	slices.SortFunc(out, func(a, b KeyInfo) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out, nil
}

func (s *Server) adminCreateKey(r *http.Request) (any, error) {
	var req CreateKeyRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if (req.User == "") == (len(req.Tags) == 0) {
		return nil, invalid("a join key is for a user or for tags: give one of the two")
	}
	def(&req.TTL, defaultTTL)
	if req.TTL < time.Second || req.TTL > maxTTL {
		return nil, invalid("a join key lasts from a second to a year, not %v", req.TTL)
	}
	id, secret, hash := newSecret()
	now := s.now()
	k := &joinKey{ID: id, Hash: hash, User: req.User, Reusable: req.Reusable, Ephemeral: req.Ephemeral, Created: now, Expires: now.Add(req.TTL)}
	err := s.commit(func(st *state) (c *change, err error) {
		if req.User != "" && st.users[req.User] == nil {
			return nil, invalid("there is no user %q: create it first (hedge admin user create)", printable(req.User))
		}
		if k.Tags, err = st.tags(req.Tags); err != nil {
			return nil, err
		}
		if err := s.keepsNevers(st, &acl.Node{Tags: k.Tags}, nil); err != nil {
			return nil, err
		}
		return &change{keys: map[string]*joinKey{id: k}}, nil
	})
	if err != nil {
		return nil, err
	}
	join := wire.Join{URLs: s.cfg.URLs, Pin: s.control(), Key: id + "." + secret}
	return CreatedKey{KeyInfo: k.info(now), Join: join.String()}, nil
}

func (s *Server) adminRevokeKey(r *http.Request) (any, error) {
	var out *joinKey
	err := s.commit(func(st *state) (*change, error) {
		k := st.keys[r.PathValue("id")]
		if k == nil {
			return nil, &AdminError{Status: 404, Class: "not-found", Msg: fmt.Sprintf("there is no join key %q; hedge admin join-key list shows all", printable(r.PathValue("id")))}
		}
		revoked := *k
		revoked.Revoked = true
		out = &revoked
		return &change{keys: map[string]*joinKey{k.ID: out}}, nil
	})
	if err != nil {
		return nil, err
	}
	return out.info(s.now()), nil
}

func (s *Server) aclInfo(source bool) ACLInfo {
	i := ACLInfo{File: s.cfg.PolicyFile, Rejected: s.policy.wrong()}
	st := s.state.Load()
	if p := st.policy; p != nil {
		i.Hash, i.Since, i.Revision = p.hash, p.Since, st.revs.get(store.Key{Kind: kindPolicy, ID: "active"})
		if source {
			i.Source = string(p.Source)
		}
	}
	return i
}

func (s *Server) adminACL(*http.Request) (any, error) { return s.aclInfo(true), nil }

func readSource(r *http.Request) ([]byte, error) {
	src, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, invalid("the policy does not read, or has more than %d bytes: %v", maxPolicy, err)
	}
	return src, nil
}

func (s *Server) adminSetACL(r *http.Request) (any, error) {
	src, err := readSource(r)
	if err != nil {
		return nil, err
	}
	if err := s.setPolicy(src); err != nil {
		return nil, err
	}
	return s.aclInfo(true), nil
}

func (s *Server) adminCheckACL(r *http.Request) (any, error) {
	src, err := readSource(r)
	if err != nil {
		return nil, err
	}
	_, check := s.prove(src)
	return check, nil
}

func (s *Server) adminStatus(*http.Request) (any, error) {
	revision := s.told.Load()
	st := s.state.Load()
	out := AdminStatus{Control: s.control(), URLs: s.cfg.URLs, Domain: s.cfg.Domain, Prefixes: s.cfg.Prefixes, Started: s.started,
		Revision: revision, Nodes: st.nodes.len(), Policy: s.aclInfo(false)}
	s.sessions.each(func(x *session) {
		out.Online++
		if x.enforces(revision) >= revision {
			out.Enforced++
		} else if n := st.nodes.get(x.id); n != nil {
			out.Behind = append(out.Behind, n.Name)
		}
	})
	slices.Sort(out.Behind)
	out.Behind = out.Behind[:min(len(out.Behind), 20)]
	return out, nil
}
