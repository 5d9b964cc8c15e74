package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// version is given by the linker when the working copy knows better than the module system: -X main.version=v0.2.0.
var version string

// build is what this binary was made from.
type build struct {
	Version  string `json:"version"` // of the module; "(devel)" when built from a working copy without tags
	Revision string `json:"revision,omitempty"`
	Time     string `json:"time,omitempty"`
	Modified bool   `json:"modified,omitempty"` // the working copy had changes
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	CGO      bool   `json:"cgo"`
}

func buildInfo() build {
	b := build{Version: "(unknown)", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" {
		b.Version = v
	}
	if version != "" {
		b.Version = version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		case "CGO_ENABLED":
			b.CGO = s.Value == "1"
		}
	}
	return b
}

func (b build) String() string {
	s := []string{"hedge " + b.Version}
	if b.Revision != "" && !strings.Contains(b.Version, b.Revision[:min(12, len(b.Revision))]) {
		s = append(s, b.Revision[:min(12, len(b.Revision))])
	}
	return fmt.Sprintf("%s (%s, %s/%s)", strings.Join(s, " "), b.Go, b.OS, b.Arch)
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Say which version this is",
		Long:    `Says which version of Hedge this is, and what it was built from and with.`,
		Example: "  hedge version\n  hedge version --json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b := buildInfo()
			return a.print(b, func(w io.Writer) { fmt.Fprintln(w, b) })
		},
	}
}
