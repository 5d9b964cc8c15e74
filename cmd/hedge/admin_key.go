package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/coordinator"
)

// lineTTL is how long the line for the next machine is good.
const lineTTL = 10 * time.Minute

func (a *app) adminKeyCmd() *cobra.Command {
	return group("join-key", "Create, list and revoke join keys",
		`Creates, lists and revokes join keys: what admits a machine to the network. A key is good once and for ten minutes
unless it is told otherwise.`,
		a.keyCreateCmd(), a.keyListCmd(), a.keyRevokeCmd())
}

func (a *app) keyCreateCmd() *cobra.Command {
	var r coordinator.CreateKeyRequest
	var qrCode bool
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Print the line for a new machine",
		Long: `Creates a join key and prints the line that admits a machine: its node belongs to --user, or has the tags of --tag. The
line is a secret, and this is the only time it is shown. Without --user and --tag the node belongs to the only user there is.`,
		Example: `  hedge admin join-key create
  hedge admin join-key create --user alice@example.com --ttl 24h
  hedge admin join-key create --tag tag:web --reusable --ephemeral --ttl 720h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.TTL <= 0 {
				return usage(fmt.Errorf("--ttl %s is no time to come", r.TTL), "")
			}
			k, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) (*coordinator.CreatedKey, error) {
				if r.User == "" && len(r.Tags) == 0 {
					var err error
					if r.User, err = onlyUser(ctx, c); err != nil {
						return nil, err
					}
				}
				return c.CreateKey(ctx, r)
			})
			if err != nil {
				return err
			}
			return a.print(k, func(w io.Writer) {
				fmt.Fprintf(w, "hedge up %s\n", k.Join)
				if qrCode {
					showQR(w, k.Join)
				}
			})
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&r.User, "user", "", "`LOGIN` the node will belong to")
	fs.StringSliceVar(&r.Tags, "tag", nil, "`TAG` the node will have, instead of a user; may be repeated")
	fs.BoolVar(&r.Reusable, "reusable", false, "good for any number of machines")
	fs.BoolVar(&r.Ephemeral, "ephemeral", false, "nodes that go away are forgotten soon after")
	fs.DurationVar(&r.TTL, "ttl", lineTTL, "`TIME` the key is good for")
	fs.BoolVar(&qrCode, "qr", false, "draw the line as a QR code too")
	return cmd
}

// onlyUser is the one user of a network that has one.
func onlyUser(ctx context.Context, c *coordinator.AdminClient) (string, error) {
	users, err := c.Users(ctx)
	if err != nil {
		return "", err
	}
	if len(users) != 1 {
		return "", usage(fmt.Errorf("there are %d users: say whose machine it will be", len(users)),
			"--user LOGIN or --tag TAG; hedge admin user list shows the users, hedge admin user create makes one")
	}
	return users[0].Login, nil
}

func (a *app) keyListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List join keys", Long: `Lists join keys, newest first, without their secrets.`,
		Example: "  hedge admin join-key list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) ([]coordinator.KeyInfo, error) {
				return c.Keys(ctx)
			})
			if err != nil {
				return err
			}
			return a.print(noNil(keys), func(w io.Writer) {
				rows := [][]string{{"ID", "FOR", "KIND", "STATE", "USES", "EXPIRES"}}
				for _, k := range keys {
					kind := "once"
					if k.Reusable {
						kind = "reusable"
					}
					if k.Ephemeral {
						kind += ", ephemeral"
					}
					rows = append(rows, []string{k.ID, owner(k.User, k.Tags), kind, k.State, fmt.Sprint(k.Uses), ago(k.Expires, time.Now())})
				}
				table(w, rows...)
			})
		},
	}
}

func (a *app) keyRevokeCmd() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "Make a join key void",
		Long:    `Makes a join key void. Nodes that it let in stay; hedge admin node remove ends those.`,
		Example: "  hedge admin join-key revoke 3f9a", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) (*coordinator.KeyInfo, error) {
				return c.RevokeKey(ctx, args[0])
			})
			if err != nil {
				return err
			}
			return a.print(k, func(w io.Writer) { fmt.Fprintf(w, "revoked %s\n", k.ID) })
		},
	}
}
