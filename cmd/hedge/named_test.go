package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Every command that a message, a help text or a document names is one that there is.
func TestNamedCommands(t *testing.T) {
	root := (&app{}).rootCmd()
	named := regexp.MustCompile(`hedge ((?:acl|admin)(?: [a-z][a-z-]*)*)`)
	prose := []string{"and", "cannot", "or", "over", "test", "alone"} // words that follow a command in a sentence
	seen := 0
	check := func(file, text string) {
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			c := root
			for word := range strings.FieldsSeq(m[1]) {
				i := slices.IndexFunc(c.Commands(), func(s *cobra.Command) bool { return s.Name() == word || s.HasAlias(word) })
				if i < 0 {
					if c.HasSubCommands() && !slices.Contains(prose, word) {
						t.Errorf("%s names hedge %s, and %s has no command %s", file, m[1], c.CommandPath(), word)
					}
					break
				}
				c = c.Commands()[i]
				seen++
			}
		}
	}
	if err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, ".md") {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && filepath.Base(path) != "named_test.go" {
			check(path, string(b))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if seen < 50 {
		t.Errorf("found %d names of commands, so this test tests nothing", seen)
	}
}

// Every command that does something shows how it is used.
func TestExamples(t *testing.T) {
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		if c.Example == "" && !c.HasSubCommands() && c.Name() != "help" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for _, s := range c.Commands() {
			check(s)
		}
	}
	check((&app{}).rootCmd())
}
