package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// mistake runs a command line that is wrong, and returns what is said about it, which is told as text and as JSON alike.
func mistake(t *testing.T, args ...string) string {
	t.Helper()
	var out, text bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &text}
	if code := a.run(t.Context(), append([]string{"--json", "--state-dir", t.TempDir()}, args...)); code != exitUsage {
		t.Fatalf("hedge %s: exit code %d, want %d; %s", strings.Join(args, " "), code, exitUsage, &text)
	}
	var f failure
	if err := json.Unmarshal(out.Bytes(), &f); err != nil || f.Code != exitUsage || f.Error == "" || f.Next == "" {
		t.Errorf("hedge %s: as JSON: %s", strings.Join(args, " "), &out)
	}
	for _, foreign := range []string{"strconv", "arg(s)", "invalid", "time:", "<nil>", "%!"} {
		if strings.Contains(text.String(), foreign) {
			t.Errorf("hedge %s: not for people: %s", strings.Join(args, " "), &text)
		}
	}
	return text.String()
}

// Every command says what is wrong with arguments and flags it cannot take, and teaches in its help.
func TestMistakes(t *testing.T) {
	root := (&app{}).rootCmd()
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		path := strings.Fields(cmd.CommandPath())[1:]
		for _, c := range cmd.Commands() {
			walk(c)
		}
		if cmd.Hidden || cmd == root {
			return
		}
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" && !cmd.HasSubCommands() {
			t.Errorf("%s: its help does not teach", cmd.CommandPath())
		}
		for _, line := range strings.Split(strings.TrimSpace(cmd.Example), "\n") {
			if !strings.Contains(line, strings.Join(path, " ")) && cmd.Example != "" {
				t.Errorf("%s: an example of something else: %s", cmd.CommandPath(), line)
			}
		}
		if said := mistake(t, append(path, "--nonsense")...); !strings.Contains(said, "--nonsense") {
			t.Errorf("%s: %s", cmd.CommandPath(), said)
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Name == "json" { // it would say how this is told
				return
			}
			switch f.Value.Type() {
			case "bool", "int", "uint16", "duration":
				said := mistake(t, append(path, "--"+f.Name+"=perhaps")...)
				if !strings.Contains(said, "--"+f.Name+": \"perhaps\" is n") {
					t.Errorf("%s: %s", cmd.CommandPath(), said)
				}
			}
		})
		words := strings.Fields(cmd.Use)[1:]
		if n := len(words); n == 0 || !strings.HasSuffix(words[n-1], "...]") {
			mistake(t, append(path, "a", "b", "c")...)
		}
		if len(words) > 0 && !strings.HasPrefix(words[0], "[") && cmd.Name() != "compile" { // which may read a case instead
			if said := mistake(t, path...); !strings.Contains(said, words[0]) {
				t.Errorf("%s: %s", cmd.CommandPath(), said)
			}
		}
	}
	walk(root)
}
