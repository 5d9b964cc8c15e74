package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// remembered are flags of a node that it keeps from one run to the next, by their names, as they were given. What is
// given again replaces what is kept; what is not, stays. The file is
//
//	{"advertise-routes": "10.33.0.0/16,fd00:33::/48", "exit-node": "frankfurt"}
type remembered map[string]string

func (d dirs) flags() string { return d.state + string(os.PathSeparator) + "node-flags.json" }

// recall reads what is kept.
func recall(d dirs) (remembered, error) {
	b, err := os.ReadFile(d.flags())
	if errors.Is(err, fs.ErrNotExist) {
		return remembered{}, nil
	}
	r := remembered{}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if r == nil { // null is no error, and no map
		r = remembered{}
	}
	if err != nil {
		return nil, failed(fmt.Errorf("cannot read the flags kept in %s: %w", d.flags(), reason(err)), "delete it, and give the flags that are not the defaults once more")
	}
	return r, nil
}

// apply gives each of the named flags that was not given what is kept of it.
func (r remembered) apply(d dirs, flags *pflag.FlagSet, names []string) error {
	for _, name := range names {
		f := flags.Lookup(name)
		v, kept := r[name]
		if f == nil || f.Changed || !kept {
			continue
		}
		if s, ok := f.Value.(pflag.SliceValue); ok {
			if err := s.Replace(parts(v)); err != nil {
				return failed(fmt.Errorf("--%s is kept in %s as %q: %w", name, d.flags(), v, err), "give the flag again")
			}
			f.Changed = true
			continue
		}
		if err := flags.Set(name, v); err != nil {
			return failed(fmt.Errorf("--%s is kept in %s as %q: %w", name, d.flags(), v, err), "give the flag again")
		}
	}
	return nil
}

// take notes those of the named flags that were given, and reports whether anything is other than before.
func (r remembered) take(flags *pflag.FlagSet, names []string) (changed bool) {
	for _, name := range names {
		f := flags.Lookup(name)
		if f == nil || !f.Changed {
			continue
		}
		v := flagText(f)
		if was, kept := r[name]; !kept || was != v {
			r[name], changed = v, true
		}
	}
	return changed
}

// keep writes them.
func (r remembered) keep(d dirs) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = replace(d.flags(), append(b, '\n'))
	}
	if err != nil {
		return failed(fmt.Errorf("cannot keep the flags in %s: %w", d.flags(), reason(err)), "make its folder writable for this user")
	}
	return nil
}

// flagText is a flag's value as it could be given.
func flagText(f *pflag.Flag) string {
	if s, ok := f.Value.(pflag.SliceValue); ok {
		return strings.Join(s.GetSlice(), ",")
	}
	return f.Value.String()
}

// parts are the elements of a list, none for nothing.
func parts(s string) []string {
	if s == "" {
		return []string{}
	}
	return strings.Split(s, ",")
}
