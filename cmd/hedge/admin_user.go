package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/coordinator"
)

func (a *app) adminUserCmd() *cobra.Command {
	return group("user", "List and create users", `Lists and creates users: the people that nodes belong to and that an ACL file names.`,
		a.userListCmd(), a.userCreateCmd())
}

func (a *app) userListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all users", Long: `Lists all users, by login.`, Example: "  hedge admin user list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			users, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) ([]coordinator.UserInfo, error) {
				return c.Users(ctx)
			})
			if err != nil {
				return err
			}
			return a.print(noNil(users), func(w io.Writer) {
				rows := [][]string{{"LOGIN", "ROLES", "NODES", "CREATED"}}
				for _, u := range users {
					rows = append(rows, []string{u.Login, dash(strings.Join(u.Roles, ",")), fmt.Sprint(u.Nodes), u.Created.Format(time.DateTime)})
				}
				table(w, rows...)
			})
		},
	}
}

func (a *app) userCreateCmd() *cobra.Command {
	var roles []string
	cmd := &cobra.Command{
		Use: "create LOGIN", Short: "Create a user",
		Long:    `Creates a user. LOGIN has the form of a mail address, alice@example.com, and is how an ACL file names the person.`,
		Example: "  hedge admin user create alice@example.com", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) (*coordinator.UserInfo, error) {
				return c.CreateUser(ctx, coordinator.CreateUserRequest{Login: args[0], Roles: roles})
			})
			if err != nil {
				return err
			}
			return a.print(u, func(w io.Writer) {
				fmt.Fprintf(w, "created %s; hedge admin join-key create --user %s prints the line for a machine\n", u.Login, u.Login)
			})
		},
	}
	cmd.Flags().StringSliceVar(&roles, "role", nil, "`ROLE` of the user, admin say; may be repeated")
	return cmd
}
