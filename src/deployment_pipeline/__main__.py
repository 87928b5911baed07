from deployment_pipeline.cli.main import main

main()
