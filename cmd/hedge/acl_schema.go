package main

import (
	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/acl"
)

func (a *app) aclSchemaCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of ACL files, for editors",
		Long: `Prints the JSON Schema (draft 2020-12) of ACL files. An editor that is given it completes field names, actions and
autogroups, and marks what is misspelt. It is made from the parser itself, so it takes what this version of Hedge
takes. What names mean, and whether they are defined, hedge acl check says.

In VS Code, for files with comments:
  "json.schemas": [{"fileMatch": ["*.hujson"], "url": "./acl.schema.json"}],
  "files.associations": {"*.hujson": "jsonc"}`,
		Example: "  hedge acl schema > acl.schema.json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.stdout.Write(acl.Schema())
			return err
		},
	}
}
