from geo_embed.cli import main

main()
