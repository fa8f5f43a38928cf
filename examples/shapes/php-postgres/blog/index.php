<?php
// Counts its readers, in a table that the first of them makes.
$password = file_get_contents('/run/secrets/password');
$db = new PDO('pgsql:host=db;dbname=blog;user=blog', null, $password);
$db->exec('CREATE TABLE IF NOT EXISTS reader (id serial PRIMARY KEY, at timestamptz DEFAULT now())');
$db->exec('INSERT INTO reader DEFAULT VALUES');
$count = $db->query('SELECT count(*) FROM reader')->fetchColumn();
echo "<!doctype html><title>Blog</title><p>You are reader number $count.</p>\n";
