// Command outbox shows how a service announces what it commits: the order and the job that
// tells of it are rows of one PostgreSQL transaction, so that there is never one without
// the other. A relay then sends the jobs. Where it is killed after a job was sent and
// before its row is gone, it sends the job again under the same id, which is the same job.
//
//	DATABASE_URL=postgres:///shop NATS_URL=nats://127.0.0.1:4222 go run ./examples/go/outbox alice 'New: blue shoes'
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
)

const schema = `
CREATE TABLE IF NOT EXISTS products (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, job jsonb NOT NULL);`

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: outbox ACCOUNT PRODUCT")
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func run(account, product string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	db, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close(ctx) }() // everything is committed, or is to be lost
	if _, err := db.Exec(ctx, schema); err != nil {
		return err
	}
	if err := addProduct(ctx, db, account, product); err != nil {
		return err
	}
	// A service runs the relay beside this, again and again.
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	producer := publishers.New(js, jetpost.Names{})
	for {
		sent, err := relayOne(ctx, db, producer)
		if err != nil || !sent {
			return err
		}
	}
}

// addProduct stores a product and the job that announces it, or neither.
func addProduct(ctx context.Context, db *pgx.Conn, account, name string) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		var id int64
		if err := tx.QueryRow(ctx, `INSERT INTO products (name) VALUES ($1) RETURNING id`, name).Scan(&id); err != nil {
			return err
		}
		job, err := json.Marshal(jetpost.Request{
			Account: account,
			ID:      fmt.Sprintf("product-%d", id), // of what it announces, so that it is announced once
			Posts:   []jetpost.Post{{Text: name}},
		})
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO outbox (job) VALUES ($1)`, job)
		return err
	})
}

// relayOne sends the oldest job that no other relay holds, and forgets it once NATS has
// stored it. It returns false where there is none.
func relayOne(ctx context.Context, db *pgx.Conn, producer *publishers.Publisher) (sent bool, err error) {
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		var row int64
		var job jetpost.Request
		err := tx.QueryRow(ctx, `SELECT id, job FROM outbox ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED`).Scan(&row, &job)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		receipt, err := producer.Publish(ctx, job)
		if err != nil {
			return fmt.Errorf("%w; do: %s", err, cmp.Or(publishers.Hint(err), "run this again"))
		}
		fmt.Println("sent", job.ID, "as job", receipt.Sequence)
		sent = true
		_, err = tx.Exec(ctx, `DELETE FROM outbox WHERE id = $1`, row)
		return err
	})
	return sent, err
}
